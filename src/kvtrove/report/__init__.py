"""Pages and charts that need nothing else: inline SVG and one style sheet."""
