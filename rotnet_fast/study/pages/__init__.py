"""The report of a study: its sections, tables and figures, as Markdown and as HTML."""
