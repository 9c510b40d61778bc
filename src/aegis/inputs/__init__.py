"""What people wrote, read strictly: nothing is lost in silence, nothing is read without end."""
