"""The gateway: follows three chains as a light client, and shows only what it verified."""
