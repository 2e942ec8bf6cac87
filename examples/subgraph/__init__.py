"""A trim graph inside an application: shared messages, a loop, and a wrapper node for other keys."""
