"""Who is measured: a file each. A function of a file builds one contender of a command and returns what does a turn."""
