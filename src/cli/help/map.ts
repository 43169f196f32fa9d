/** The help of `vimgfs map`. */
export const HELP = `Usage: vimgfs map [OPTION…] IMAGE[@TAG]

Shows which parts of the disk are data, and in which file and where their bytes are, with the fields
of qemu-img map. No data are read, and no passphrase is needed. IMAGE@TAG is a snapshot.

  --output=human|json    for people: only data that lie in a file as they are (the default); or for
                         programs: all parts, with the layer (depth, 0 is IMAGE itself), whether a
                         layer has it (present), and whether it is zeros (zero) or data
  -s, --start-offset=N   begin there, such as 1M (0)
  -l, --max-length=N     show no more than that (all)
  -f, --format F         {formats} (found by its bytes)
  -U, --force-share      read it also while others write it
  --allow-path DIR       IMAGE may also name files below DIR (its own folder)
  --ignore-cid           read a vmdk whose parent has changed since it was made

Example:
  vimgfs map --output=json disk.qcow2
`
