// Eight threads want one lock, whose holder sleeps in it.
public class LockConvoy {
    static final Object inventory = new Object();
    static long orders;

    static void reserve() throws InterruptedException {
        synchronized (inventory) {
            orders++;
            Thread.sleep(15);
        }
    }

    public static void main(String[] args) {
        for (int i = 0; i < 8; i++) {
            new Thread(() -> {
                try {
                    while (true) reserve();
                } catch (InterruptedException end) {
                }
            }, "order-" + i).start();
        }
        System.out.println("ready");
    }
}
