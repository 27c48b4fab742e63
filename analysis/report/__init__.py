"""Tables, sentences and web pages of a study."""
