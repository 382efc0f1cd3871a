"""A vision-language model as judge of edits: what it is asked, what it answers, and who it is."""
