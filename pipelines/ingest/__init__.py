"""From a public dataset on disk to shards and an index: one small file per dataset."""
