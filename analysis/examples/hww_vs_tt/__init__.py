"""H→WW against tt̄: the textbook exercise with two classes and 26 features."""
