"""The report's parts, one file each: `render(Facts) -> str` in Markdown, empty when there is nothing to say."""
