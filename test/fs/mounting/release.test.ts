/** An image that another process holds: when vimgfs tries again. */
import t from 'tap'
import { ImageInUse } from '../../../src/errors.js'
import { whenReleased } from '../../../src/fs/mounting/release.js'

const held = (holders: number[]) =>
  new ImageInUse('another program writes it', holders, { path: 'disk' })

t.test('a lock whose process has no descriptors any more will go at once', async t => {
  const obstacles = [held([]), held([])]
  const opened = await whenReleased(
    () => {
      const obstacle = obstacles.pop()
      if (obstacle) throw obstacle
      return 'open'
    },
    line => t.fail(line),
  )
  t.equal(opened, 'open')
})

t.test('one that stays is an error', async t => {
  await t.rejects(
    whenReleased(
      () => {
        throw held([])
      },
      line => t.fail(line),
    ),
    /another program writes it/,
  )
})

t.test('a process that goes on keeps it', async t => {
  let tries = 0
  await t.rejects(
    whenReleased(
      () => {
        tries++
        throw held([process.pid])
      },
      line => t.fail(line),
    ),
  )
  t.equal(tries, 1)
})
