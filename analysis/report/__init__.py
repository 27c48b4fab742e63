"""Write tables, sentences and web pages of a study."""
