"""H→WW against diboson production: ATLAS open data at 13 TeV."""
