"""From a study to its trials, with their cost in time and money."""
