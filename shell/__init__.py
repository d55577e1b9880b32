"""What every command needs and no task is. The ground room: imports no other."""
