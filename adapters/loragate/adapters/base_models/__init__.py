"""Where base models come from, and what is known of them."""
