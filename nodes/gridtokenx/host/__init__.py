"""The asyncio host: everything that touches sockets, disks, clocks and keys on behalf of machines."""
