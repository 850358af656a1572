"""The twin dictionary: its store on disk, sampling from it, tools for whole dictionaries."""

from solo_infoaug.dictionary.sampling import TwinPairs as TwinPairs
from solo_infoaug.dictionary.store import TwinDictionary as TwinDictionary
