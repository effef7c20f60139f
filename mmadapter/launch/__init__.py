"""How the processes of a run are started, found and kept together; standard library only, for it runs before torch."""
