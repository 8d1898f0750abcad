"""What each page says, as plain data. The page and its index.json are both made from it."""
