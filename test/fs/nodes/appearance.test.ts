/** Modes that files have in common, for a group and for others. */
import t from 'tap'
import { commonMode } from '../../../src/fs/nodes/appearance.js'

const file = (mode: number, gid = 5) => ({ mode, gid })
const cases = [
  { title: 'one file', files: [file(0o640)], mode: 0o640 },
  { title: 'a layer that is closed to others', files: [file(0o644), file(0o600)], mode: 0o600 },
  { title: 'an extent that others may not write', files: [file(0o666), file(0o644)], mode: 0o644 },
  {
    title: 'one is open to its group, one to others',
    files: [file(0o640), file(0o604)],
    mode: 0o600,
  },
  { title: 'another group, open to it alone', files: [file(0o660, 6)], mode: 0o600 },
  { title: 'another group, open to all', files: [file(0o664, 6)], mode: 0o644 },
  { title: 'another group, closed to it', files: [file(0o606, 6)], mode: 0o600 },
  { title: 'files of two groups', files: [file(0o660), file(0o664, 6)], mode: 0o640 },
  {
    title: 'a group that the user has named',
    files: [file(0o660, 6)],
    mode: 0o660,
    group: undefined,
  },
  { title: 'the same, and others', files: [file(0o664, 6)], mode: 0o664, group: undefined },
]

for (const { title, files, mode, ...named } of cases) {
  t.test(title, async t => {
    const found = commonMode(files, 'group' in named ? named.group : 5)
    t.equal(found.toString(8), mode.toString(8))
  })
}
