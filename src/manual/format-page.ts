/** The page vimgfs-format(5): the files of a mount. */
import type { Page } from './roff.js'

export const FORMAT_PAGE: Page = {
  name: 'vimgfs-format',
  section: 5,
  summary: 'the files that a mount of vimgfs shows',
  sections: [
    {
      title: 'DESCRIPTION',
      parts: [
        'A mount is one folder without subfolders that are listed. All files in it are raw disks.',
        {
          rows: [
            {
              head: 'disk.raw',
              text: `the disk now, with its virtual size. Its time of change is that of the newest file
                that it is made of. It can be written unless the mount is read-only.`,
            },
            {
              head: 'disk@TAG.raw',
              text: `the snapshot TAG, with its own size, and its date as time of change. It and all
                files below can only be read.`,
            },
            {
              head: 'disk@TAG.vmstate',
              text: "the machine's memory that was saved with the snapshot, if any",
            },
            {
              head: 'disk@BASE.raw',
              text: `a layer of the backing chain: the state without the layers above it. It is named
                after its file without .qcow2, .raw and the like; layers whose names differ only in
                that suffix keep it.`,
            },
            {
              head: 'disk@BASE@TAG.raw',
              text: 'a snapshot inside a layer of the backing chain',
            },
            {
              head: 'disk.p1.raw, disk@TAG.p1.raw',
              text: 'with -o partitions: the partitions of each disk',
            },
          ],
        },
        'The folder .vimgfs is not listed. Its files open by their names:',
        {
          rows: [
            {
              head: '.vimgfs/status.json',
              text: `the image, its layers, the server's process, how each file is served (files), and
                the socket where commands reach the server (null if there is none)`,
            },
            {
              head: '.vimgfs/stats.json',
              text: 'threads that serve, requests, hits of the cache, latencies, memory',
            },
            { head: '.vimgfs/partitions.json', text: 'with -o partitions: all partitions' },
          ],
        },
      ],
    },
    {
      title: 'NAMES',
      parts: [
        `Some characters of a tag are percent-encoded: those that a file name cannot have or that hide
          (a slash, a percent sign, control characters, characters that nobody sees or that change the
          direction of text, bytes that are not UTF-8). A tag that occurs twice, or is too long, gets
          ~ID after it. A layer whose name occurs twice gets ~1 for the next one below, and its snapshot
          ~1.ID.`,
      ],
    },
    {
      title: 'SPACE AND ATTRIBUTES',
      parts: [
        `Holes stay holes: du(1) shows what is really allocated, and df(1) the disk's size, and as used
          what the image's own files take. The extended attributes user.vimgfs.format,
          user.vimgfs.snapshot-id, user.vimgfs.snapshot-date and others describe each file.`,
      ],
    },
    {
      title: 'EXAMPLES',
      parts: [
        {
          lines: [
            'ls -ls /mnt/x',
            'cp --sparse=auto /mnt/x/disk@before-upgrade.raw /backup/',
            'mount -o loop,ro,noload /mnt/x/disk@before-upgrade.p1.raw /mnt/old',
            'getfattr -d /mnt/x/disk.raw',
          ],
        },
      ],
    },
  ],
  seeAlso: ['vimgfs(1)', 'vimgfs-mount(1)', 'vimgfs-snapshot(1)'],
}
