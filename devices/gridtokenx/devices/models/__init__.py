"""Device physics as pure integer functions of (persisted state, profile, time).

Powers are whole watts, times whole milliseconds, so energies are exact in milliwatt-seconds
(`_mws`, one watt for one millisecond). Nothing is random and nothing rounds differently on another
processor: a fleet that was killed replays the steps that it missed and arrives at the same
registers.
"""
