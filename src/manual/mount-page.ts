/** The page mount.vimgfs(8): images in fstab, by mount(8). */
import { type Names, named } from '../cli/help/names.js'
import type { OptionHelp } from '../cli/help/description.js'
import { MOUNT_OPTIONS, OPTIONS } from '../cli/help/mount.js'
import { rowsOf } from './command-pages.js'
import type { Page, Row } from './roff.js'

export function mountPage(names: Names): Page {
  const fill = (text: string) => named(text, names)
  return {
    name: 'mount.vimgfs',
    section: 8,
    summary: 'mount a virtual disk image by mount(8)',
    sections: [
      {
        title: 'SYNOPSIS',
        parts: [{ commands: ['mount -t vimgfs [-o OPTION,…] IMAGE MOUNTPOINT'] }],
      },
      {
        title: 'DESCRIPTION',
        parts: [
          `mount(8) calls this program for the type vimgfs: on the command line, for lines of fstab(5),
            for mount units of systemd and for maps of autofs. It shows IMAGE in the folder MOUNTPOINT as
            vimgfs-mount(1) does, and prints errors only.`,
        ],
      },
      {
        title: 'OPTIONS',
        parts: [
          'These are options of the mount, as after -o of vimgfs-mount(1):',
          { rows: rowsOf(MOUNT_OPTIONS, fill) },
          `These do the same as the options of vimgfs-mount(1) that have their names. A backslash stands
            before a comma in a value.`,
          { rows: spelledRows(fill) },
          `mount(8) keeps its own options, such as nofail, noauto, user, _netdev and x-systemd.automount.`,
        ],
      },
      {
        title: 'EXIT STATUS',
        parts: [
          `As mount(8) documents: 0 mounted, 1 wrong usage, 8 interrupted, 32 not mounted. With nofail, an
            image that is missing is no error.`,
        ],
      },
      {
        title: 'EXAMPLES',
        parts: [
          'A line of fstab(5), which mounts the image when somebody looks into the folder:',
          { lines: ['/srv/disk.qcow2  /mnt/x  vimgfs  ro,nofail,x-systemd.automount  0 0'] },
        ],
      },
    ],
    seeAlso: ['vimgfs(1)', 'vimgfs-mount(1)', 'vimgfs-format(5)', 'fstab(5)', 'mount(8)'],
  }
}

/** Returns the options of `vimgfs mount` as -o spells them. */
function spelledRows(fill: (text: string) => string): Row[] {
  const options: [string, OptionHelp][] = Object.entries(OPTIONS)
  return options
    .filter(([name]) => name !== 'option')
    .map(([name, { type, value, choices = [], help }]) => ({
      head: type === 'boolean' ? name : `${name}=${value ?? choices.join('|')}`,
      text: fill(help.replaceAll('{choices}', choices.join(', '))),
    }))
}
