/** The table of snapshots, as qemu-img prints it. */
import { printable } from '../errors.js'
import type { SnapshotInfo } from '../image/info.js'
import { humanSize } from './human.js'

/** Returns the lines of the table, with its title. */
export const snapshotTable = (snapshots: readonly SnapshotInfo[]): string[] => [
  'Snapshot list:',
  TABLE_HEAD,
  ...snapshots.map(row),
]

const TABLE_HEAD = columns('ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT')

function row(snapshot: SnapshotInfo): string {
  const date = new Date(snapshot['date-sec'] * 1000)
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-')
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(':')
  const seconds = snapshot['vm-clock-sec']
  const clock = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map(two)
  const milliseconds = Math.floor(snapshot['vm-clock-nsec'] / 1e6)
  return columns(
    printable(snapshot.id),
    printable(snapshot.name),
    humanSize(snapshot['vm-state-size']),
    `${day} ${time}`,
    `${clock.join(':')}.${String(milliseconds).padStart(3, '0')}`,
    String(snapshot.icount ?? ''),
  )
}

const two = (value: number): string => String(value).padStart(2, '0')

/** Returns a line of the snapshot list. A space follows also a text that is too long for its column. */
function columns(
  id: string,
  tag: string,
  size: string,
  date: string,
  clock: string,
  icount: string,
) {
  return [
    id.padEnd(9),
    tag.padEnd(16),
    size.padStart(8),
    date.padStart(19),
    clock.padStart(12),
    icount.padStart(10),
  ].join(' ')
}
