"""What a state would be if it were finished now: the searches decide by it."""
