"""Where observations come from: HTTP sources and their formats, and a market to observe."""
