/** A mount whose server has died while it started. */
import t from 'tap'
import { LeftMount } from '../../../src/fs/mounting/left-mount.js'
import { mountAt } from '../../../src/io/mountinfo.js'
import {
  hasEnded,
  kill,
  mount,
  mountFolder,
  noFuse,
  READ_ONLY,
  sampleImage,
} from '../../support/mount.js'

t.test('a mount that came since then is taken away, and only that', noFuse(), async t => {
  const folder = mountFolder(t)
  const before = new LeftMount(folder)
  t.ok(await before.remove(), 'nothing is mounted')
  const { pid } = await mount(t, sampleImage(t), { folder, args: READ_ONLY })
  const later = new LeftMount(folder)
  kill(pid, 'SIGKILL')
  t.ok(await hasEnded(t, pid))
  t.ok(await later.remove())
  t.ok(mountAt(folder), 'a mount that was there is left alone')
  t.ok(await before.remove())
  t.notOk(mountAt(folder))
})
