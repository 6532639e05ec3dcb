"""The energy market: auction, indicative price, order book."""
