"""What goes out: the messages, the publisher, the subscriber."""
