"""From a network's manifest to the files of containers and of the services beside it."""
