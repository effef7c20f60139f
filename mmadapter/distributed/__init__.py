"""Several processes of one run: how they are started, how they find each other, what they tell each other."""
