"""Where on Earth, and when: countries, places, UTM zones, seasons and ground distances, all offline."""
