"""The whole study: every table and figure of the method as cells with results in JSON files."""
