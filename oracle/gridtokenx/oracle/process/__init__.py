"""The oracle node as a process: MQTT intake, watermarks, feed observers, and the chain node."""
