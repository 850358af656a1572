"""Pictures, a movie and an HTML page of a dictionary."""

from solo_infoaug.viewer.page import show as show
