"""H→WW* against WW, with masses and momenta as regression targets."""
