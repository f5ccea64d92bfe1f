"""What an adapter's folder is, and what is checked of it before it is published."""
