"""The data at rest: records, shards, and the tables beside them."""
