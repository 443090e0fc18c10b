"""Legal text: Markdown, numbering, Word files and redlines. Text in, text or bytes out."""
