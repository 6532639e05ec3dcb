"""Calls and events of the market. A product is (zone, delivery interval)."""

from typing import Final

from gridtokenx.consortium.market.auction import Rule, Side
from gridtokenx.core.codec import Wire
from gridtokenx.core.types import Index16, Millis, PublicKey, ShortText, UInt63

# -- calls -----------------------------------------------------------------------------------------


class PlaceOrder(Wire, frozen=True, tag="market.place_order"):
    """Bid for or offer energy in one product; good until its gate closes."""

    client_order_id: UInt63
    """The sender's own name for it; unique among the sender's open orders in this product."""
    zone: Index16
    interval: UInt63
    """Delivery interval: UTC index of the half hour."""
    side: Side
    limit_uwatt_per_kwh: UInt63
    """All-in: what the buyer pays at most, or the seller receives at least, fees included."""
    energy_wh: UInt63


class CancelOrder(Wire, frozen=True, tag="market.cancel_order"):
    """Take back one of the sender's open orders."""

    zone: Index16
    interval: UInt63
    client_order_id: UInt63


CALLS: Final = (PlaceOrder, CancelOrder)

# -- events ----------------------------------------------------------------------------------------


class BookOpened(Wire, frozen=True, tag="market.book_opened"):
    """Orders for a product are taken from now on; its collar is frozen."""

    zone: Index16
    interval: UInt63
    gate_ms: Millis
    """Network time at which the gate closes."""
    reference_uwatt_per_kwh: UInt63
    floor_uwatt_per_kwh: UInt63
    cap_uwatt_per_kwh: UInt63


class OrderPlaced(Wire, frozen=True, tag="market.order_placed"):
    """An order entered the book."""

    order_id: UInt63
    """The chain's name for it; counts all orders."""
    account: PublicKey
    client_order_id: UInt63
    zone: Index16
    interval: UInt63
    side: Side
    limit_uwatt_per_kwh: UInt63
    energy_wh: UInt63
    locked_uwatt: UInt63
    """Collateral held for it."""


class OrderCancelled(Wire, frozen=True, tag="market.order_cancelled"):
    """An order left the book without taking part in an auction."""

    order_id: UInt63
    account: PublicKey
    client_order_id: UInt63
    reason: ShortText
    """``owner``, or ``void`` if the chain stood still over the auction."""


class OrderClosed(Wire, frozen=True, tag="market.order_closed"):
    """An order took part in its auction."""

    order_id: UInt63
    account: PublicKey
    client_order_id: UInt63
    side: Side
    filled_wh: UInt63
    """0 if it did not trade."""


class TradeMatched(Wire, frozen=True, tag="market.trade_matched"):
    """Energy attributed from a seller to a buyer; both settle at the auction's price."""

    zone: Index16
    interval: UInt63
    buy_order_id: UInt63
    sell_order_id: UInt63
    buyer: PublicKey
    seller: PublicKey
    energy_wh: UInt63
    price_uwatt_per_kwh: UInt63


class AuctionCleared(Wire, frozen=True, tag="market.auction_cleared"):
    """The auction of a product was held; it may have found nothing to trade."""

    zone: Index16
    interval: UInt63
    price_uwatt_per_kwh: UInt63 | None
    """Before fees and network charge; None if nothing traded."""
    volume_wh: UInt63
    demand_wh: UInt63
    """Bid at the price or above; without a price, all that was bid."""
    supply_wh: UInt63
    """Offered at the price or below; without a price, all that was offered."""
    orders: UInt63
    trades: UInt63
    rule: Rule
    """Which of the four rules fixed the price."""


class AuctionVoided(Wire, frozen=True, tag="market.auction_voided"):
    """The chain stood still until delivery had begun: all orders were released."""

    zone: Index16
    interval: UInt63
    orders: UInt63


class PriceSignalUpdated(Wire, frozen=True, tag="market.price_signal_updated"):
    """The indicative price of a zone changed."""

    zone: Index16
    interval: UInt63
    """The product whose book it was read from: the next to be cleared."""
    grid_ms: Millis
    """Grid time of the signal."""
    price_uwatt_per_kwh: UInt63
    supply_wh: UInt63
    demand_wh: UInt63


EVENTS: Final = (
    BookOpened,
    OrderPlaced,
    OrderCancelled,
    OrderClosed,
    TradeMatched,
    AuctionCleared,
    AuctionVoided,
    PriceSignalUpdated,
)
