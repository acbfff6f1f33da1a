"""H→WW against top, diboson and V + jets, on events that the analysis simulates itself."""
