"""From YAML files and command-line overrides to a validated study."""
