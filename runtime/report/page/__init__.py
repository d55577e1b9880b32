"""The page that the HTML report fills."""
