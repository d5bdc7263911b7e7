"""Policy: decides, serves, tells."""
