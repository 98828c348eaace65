"""Keys that vouch for releases: made, kept, exchanged, used. Private parts never lie in a project's folder."""
