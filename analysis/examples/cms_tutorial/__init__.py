"""Single top against WW: the files of the CMS HEP tutorial at 7 TeV."""
