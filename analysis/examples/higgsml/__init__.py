"""H→ττ against its backgrounds: the ATLAS HiggsML challenge of 2014."""
