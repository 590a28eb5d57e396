"""-O2: the split of a network between integers and float that costs least, found by a cut and judged by a meter."""
