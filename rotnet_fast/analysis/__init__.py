"""What pictures show of trained networks, as plain dictionaries that JSON can hold.

Every function takes a network and images and returns numbers, strings, lists and encoded arrays (see
`rotnet_fast.arrays`); `rotnet_fast.plots` draws them, without torch.
"""
