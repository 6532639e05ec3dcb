"""The pure floor that everything stands on: units, codec, keys, trees, quorums, machines."""
