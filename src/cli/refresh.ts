/** `vimgfs refresh`: makes a mount show what others have made of its image. */
import { MountError } from '../errors.js'
import { connectTo } from '../control/find.js'
import { mountOn } from '../io/mountinfo.js'
import { parse } from './arguments.js'
import { ask } from './mounted.js'

export async function run(args: string[]): Promise<number> {
  const { positionals } = parse(args, {}, 'refresh', ['MOUNTPOINT'])
  const name = positionals[0] as string
  if (!mountOn(name)) throw new MountError(`${name}: no image is mounted there by vimgfs`)
  const server = await connectTo(name)
  if (!server) throw new MountError(`${name}: nothing is mounted there any more`)
  try {
    await ask(server, { do: 'refresh' })
  } finally {
    server.close()
  }
  return 0
}
